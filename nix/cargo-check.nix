# A command over the whole workspace whose success is all that is wanted of it.
{ rustPlatform, workspace }:
{
  name,
  command,
  tools ? [ ],
}:
rustPlatform.buildRustPackage {
  pname = "rundlet-${name}";
  inherit (workspace) src version;
  cargoLock = { inherit (workspace) lockFile; };
  nativeBuildInputs = tools;
  doCheck = false;
  auditable = false;
  buildPhase = ''
    runHook preBuild
    ${command}
    runHook postBuild
  '';
  installPhase = "touch $out";
}

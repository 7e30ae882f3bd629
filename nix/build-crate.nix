# One program of the workspace, named by its folder. Tests are checks of their own (./checks), run once for all.
{
  lib,
  rustPlatform,
  workspace,
}:
{
  folder,
  rustPlatform' ? rustPlatform,
  ...
}@args:
let
  crate = workspace.member folder;
in
rustPlatform'.buildRustPackage (
  {
    pname = crate.name;
    inherit (workspace) src version;
    cargoLock = { inherit (workspace) lockFile; };
    cargoBuildFlags = [
      "--package"
      crate.name
    ];
    doCheck = false;
    # An audit section is read by nobody here, and the guest's program is counted in bytes.
    auditable = false;
    meta = {
      inherit (crate) description;
      license = lib.licenses.asl20;
      platforms = [ "x86_64-linux" ];
      mainProgram = crate.name;
    };
  }
  // removeAttrs args [
    "folder"
    "rustPlatform'"
  ]
)

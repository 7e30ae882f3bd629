{
  deadnix,
  lib,
  nixfmt,
  runCommandLocal,
}:
runCommandLocal "rundlet-nix-format"
  {
    nativeBuildInputs = [
      deadnix
      nixfmt
    ];
    src = lib.sources.sourceFilesBySuffices ../.. [ ".nix" ];
  }
  ''
    cd $src
    find . -name '*.nix' -exec nixfmt --check {} +
    deadnix --fail .
    touch $out
  ''

# A stand-in for nixpkgs, ours and small, where there is none: it finds misspelt names, wrong types, missing files and
# broken wiring in our own Nix. It says nothing about nixpkgs; tier E does (../README.md).
let
  lib = import ./lib.nix;
in
{
  inherit lib;
  legacyPackages.x86_64-linux = import ./packages.nix lib;
}

# Tier E: everything to `drvPath`, against a tree of nixpkgs.
{
  tree,
  source ? ../..,
}:
let
  system = "x86_64-linux";
  lib = import (tree + "/lib");
  outputs = import ./outputs.nix {
    inherit source;
    nixpkgs = {
      inherit lib;
      legacyPackages.${system} = import tree {
        inherit system;
        config = { };
        overlays = [ ];
      };
    };
  };
  drvPaths = lib.mapAttrs (_: it: it.drvPath);
in
{
  packages = drvPaths outputs.packages.${system};
  checks = drvPaths outputs.checks.${system};
  devShells = drvPaths outputs.devShells.${system};
  formatter = outputs.formatter.${system}.drvPath;
  apps = lib.mapAttrs (_: app: app.program) outputs.apps.${system};
}

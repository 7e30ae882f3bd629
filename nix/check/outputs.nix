# The flake's outputs with another nixpkgs, the stand-in or a tree, without fetching or copying one.
{
  nixpkgs,
  source ? ../..,
}:
let
  flake = import (source + "/flake.nix");
  self = flake.outputs {
    inherit nixpkgs;
    self = self // {
      outPath = source;
    };
  };
in
self

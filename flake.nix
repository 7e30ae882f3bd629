# Only translates: what is built is in nix/, guest-kernel/ and guest-userspace/, what is proved in nix/checks and vm-tests/.
{
  description = "Rundlet: very many small sandboxes, each a microVM";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      # The monitor knows no other machine (ARCHITECTURE.md, "Choices").
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system}.extend self.overlays.default;
      ours = pkgs.rundletPackages;
      packages = lib.filterAttrs (_: lib.isDerivation) (ours.packages ours);
    in
    {
      overlays.default = import ./nix/overlay.nix;
      packages.${system} = packages // {
        default = ours.rundlet;
      };
      checks.${system} = packages // ours.checks // ours.claims;
      apps.${system}.demo = {
        type = "app";
        program = lib.getExe ours.demo;
        meta.description = "Run a Python program in a sandbox on this machine and show what it cost";
      };
      nixosModules.default = {
        imports = [ ./nixos-module ];
        services.rundlet.package = lib.mkDefault ours.rundlet;
      };
      devShells.${system}.default = ours.callPackage ./nix/shell.nix { };
      formatter.${system} = pkgs.nixfmt-tree;
      lib = { inherit (ours) mkImage; };
    };
}

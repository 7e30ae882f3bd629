# The packages are the files of ./packages, the checks those of ./checks, by their names.
lib: self:
let
  callPackage = file: self.callPackage file;
  byName =
    folder:
    lib.mapAttrs' (file: _: {
      name = lib.removeSuffix ".nix" file;
      value = callPackage (folder + "/${file}") { };
    }) (builtins.readDir folder);
in
byName ./packages
// {
  guest-kernel = callPackage ../guest-kernel { };
  guest-initrd = callPackage ../guest-userspace { };

  workspace = callPackage ./workspace.nix { };
  buildCrate = callPackage ./build-crate.nix { };
  cargoCheck = callPackage ./cargo-check.nix { };
  mkImage = callPackage ./mk-image.nix { };

  checks = byName ./checks;
  # callPackage adds functions to what is no package.
  claims = lib.filterAttrs (_: lib.isDerivation) (callPackage ../vm-tests { });
}

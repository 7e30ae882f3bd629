# Tier E: everything to `drvPath`, against a tree of nixpkgs.
{
  tree,
  source ? ../..,
}:
let
  system = "x86_64-linux";
  lib = import (tree + "/lib") // {
    nixosSystem =
      arguments: import (tree + "/nixos/lib/eval-config.nix") (arguments // { inherit lib; });
  };
  nixpkgs = {
    inherit lib;
    legacyPackages.${system} = import tree {
      inherit system;
      config = { };
      overlays = [ ];
    };
  };
  outputs = import ./outputs.nix { inherit nixpkgs source; };
  pkgs = nixpkgs.legacyPackages.${system}.extend outputs.overlays.default;

  # What every machine needs, and is none of our business.
  machine = {
    boot.loader.grub.devices = [ "/dev/vda" ];
    fileSystems."/" = {
      device = lib.mkDefault "/dev/vda1";
      fsType = lib.mkDefault "xfs";
    };
    system.stateVersion = lib.trivial.release;
    nixpkgs = { inherit pkgs; };
    users.users.ci = {
      isSystemUser = true;
      group = "nogroup";
    };
  };
  host =
    module:
    lib.nixosSystem {
      inherit system;
      modules = [
        outputs.nixosModules.default
        machine
        module
      ];
    };
  reference = host ./reference.nix;
  isOurs = name: _: name == "rundlet" || lib.hasPrefix "rundlet-" name;
  ours = lib.filterAttrs isOurs reference.config.systemd.services;
  sockets = lib.filterAttrs isOurs reference.config.systemd.sockets;
  slices = lib.filterAttrs isOurs reference.config.systemd.slices;
  units =
    suffix: of:
    lib.mapAttrs' (name: _: {
      name = "systemd/system/${name}.${suffix}";
      value = reference.config.systemd.units."${name}.${suffix}".text;
    }) of;
  wanted =
    suffix: of:
    lib.concatLists (
      lib.mapAttrsToList (name: unit: map (it: "${it}: ${name}.${suffix}") unit.wantedBy) of
    );
  drvPaths = lib.mapAttrs (_: it: it.drvPath);
in
{
  outputs = {
    packages = drvPaths outputs.packages.${system};
    checks = drvPaths outputs.checks.${system};
    devShells = drvPaths outputs.devShells.${system};
    formatter = outputs.formatter.${system}.drvPath;
    apps = lib.mapAttrs (_: app: app.program) outputs.apps.${system};
  };

  module = {
    inherit (reference.config) warnings;
    system = reference.config.system.build.toplevel.drvPath;
  };
  refused = lib.mapAttrs (_: case: (host case.module).config.system.build.toplevel.drvPath) (
    import ./refused.nix
  );

  # Text and settings as NixOS renders them, under the names that stand-in/nixos.nix gives them.
  rendered =
    units "service" ours
    // units "socket" sockets
    // units "slice" slices
    // {
      "tmpfiles.d/rundlet.conf" = lib.concatLines reference.config.systemd.tmpfiles.rules;
      "udev/rules.d/99-local.rules" = reference.config.services.udev.extraRules;
      "modprobe.d/nixos.conf" = reference.config.boot.extraModprobeConfig;
      "kernel-parameters" = lib.concatLines reference.config.boot.kernelParams;
      "sysctl.d/60-nixos.conf" = lib.concatLines (
        lib.mapAttrsToList (key: value: "${key}=${toString value}") reference.config.boot.kernel.sysctl
      );
      "group-members" =
        lib.concatMapStrings (name: "${name}: ${toString reference.config.users.groups.${name}.members}\n")
          [
            "kvm"
            "rundlet"
          ];
      "wanted-by" = lib.concatLines (wanted "service" ours ++ wanted "socket" sockets);
      "system-packages" = lib.concatMapStrings (
        it: "${it.name}\n"
      ) reference.config.environment.systemPackages;
      "rundlet.json" = (lib.head ours.rundlet.restartTriggers).text;
      "rundlet-declared.json" = (lib.head ours.rundlet-store.restartTriggers).text;
    };

  optionsDoc =
    (pkgs.nixosOptionsDoc {
      options = {
        inherit (reference.options.services) rundlet;
      };
      warningsAreErrors = true;
    }).optionsJSON.drvPath;

  readme =
    flake:
    lib.mapAttrs (_: it: it.config.system.build.toplevel.drvPath)
      ((import flake).outputs {
        inherit nixpkgs;
        rundlet = outputs;
      }).nixosConfigurations;
}

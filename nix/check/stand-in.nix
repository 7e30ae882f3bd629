# Tier B: everything that the flake has, evaluated with the stand-in, as data for check.py to look at.
{
  source ? ../..,
  # The README's, for `readme`.
  flake ? null,
}:
let
  nixpkgs = import ./stand-in;
  inherit (nixpkgs) lib;
  system = "x86_64-linux";
  outputs = import ./outputs.nix { inherit nixpkgs source; };
  pkgs = nixpkgs.legacyPackages.${system}.extend outputs.overlays.default;
  derivations = outputs.packages.${system} // outputs.checks.${system};

  host =
    module:
    import ./stand-in/nixos.nix {
      inherit lib pkgs;
      module.imports = [
        outputs.nixosModules.default
        module
      ];
    };
  reference = host ./reference.nix;
  plain = host { services.rundlet.enable = true; };

  refused = import ./refused.nix;

  # Options, those inside of submodules as well, by their dotted names.
  documented =
    options:
    lib.concatMap (
      name:
      let
        option = options.${name};
      in
      if option._type or null == "option" then
        [
          {
            name = lib.concatMapStringsSep "." toString option.loc;
            type = option.type.name;
            description = option.description or "";
            exampleOrDefault = option ? example || option ? default;
          }
        ]
        ++ inner option.type
      else
        documented option
    ) (lib.attrNames options);
  inner =
    type:
    if type ? module then
      documented
        (lib.evalModules {
          modules = [ type.module ];
          specialArgs.name = "<name>";
        }).options
    else
      lib.optionals (type ? nested) (inner type.nested);
in
{
  outputs = {
    drvPaths = lib.mapAttrs (_: it: it.drvPath) (
      derivations
      // {
        shell = outputs.devShells.${system}.default;
        formatter = outputs.formatter.${system};
      }
    );
    apps = lib.mapAttrs (_: app: app.program) outputs.apps.${system};
    image =
      (outputs.lib.mkImage {
        name = "oci";
        archive = source + "/flake.nix";
      }).drvPath;
  };
  shell = lib.mapAttrs (_: it: it.shell or { }) derivations;
  testScripts = lib.mapAttrs (_: it: it.testScript) (
    lib.filterAttrs (_: it: it ? testScript) outputs.checks.${system}
  );

  options = documented reference.options.services.rundlet;
  reference = {
    inherit (reference) rendered warnings;
  };
  plain = {
    inherit (plain) rendered warnings;
  };
  refused = lib.mapAttrs (_: case: { inherit (host case.module) rendered; }) refused;
  refusedWords = lib.mapAttrs (_: case: case.words) refused;

  # A flake as the README shows it, with our flake as its input.
  readme =
    lib.mapAttrs
      (_: it: {
        inherit (it) rendered warnings;
      })
      ((import flake).outputs {
        inherit nixpkgs;
        rundlet = outputs;
      }).nixosConfigurations;
}

# The packages and builders that our Nix uses, as sets that look like packages and are never built. Whatever a builder is
# given is evaluated in full; shell text is kept in `shell`, for a look by bash.
lib:
let
  inherit (builtins) deepSeq functionArgs isFunction;

  # Names that may stand in the arguments of a package. One that is not here is misspelt, or missing here.
  names = [
    "bash"
    "bc"
    "binutils"
    "bison"
    "busybox"
    "cargo"
    "clippy"
    "coreutils"
    "deadnix"
    "diffutils"
    "e2fsprogs"
    "elfutils"
    "erofs-utils"
    "findutils"
    "flex"
    "gawk"
    "gnugrep"
    "gnused"
    "iproute2"
    "kmod"
    "makeBinaryWrapper"
    "nixfmt"
    "nixfmt-tree"
    "perl"
    "procps"
    "psmisc"
    "python3"
    "python3Minimal"
    "qemu"
    "rustfmt"
    "strace"
    "util-linux"
    "xfsprogs"
  ];

  # Exists once everything in `inputs` could be evaluated.
  fake =
    {
      name,
      inputs ? { },
      shell ? { },
      passthru ? { },
      meta ? { },
    }:
    passthru
    // {
      type = "derivation";
      inherit name shell meta;
      outPath = deepSeq [ inputs shell meta ] "/nix/store/stand-in-${name}";
      drvPath = deepSeq [ inputs shell meta ] "/nix/store/stand-in-${name}.drv";
    };

  refuse =
    builder: known: arguments:
    let
      unknown = builtins.attrNames (removeAttrs arguments known);
    in
    if unknown == [ ] then
      arguments
    else
      throw "stand-in: ${builder} takes no argument ${toString unknown}";

  # What of a derivation's arguments is shell.
  phases =
    arguments:
    lib.filterAttrs (name: _: lib.hasSuffix "Phase" name || lib.hasPrefix "post" name) arguments;

  mkDerivation =
    arguments:
    fake {
      name = arguments.name or "${arguments.pname}-${arguments.version}";
      inputs = removeAttrs arguments [ "passthru" ];
      shell = phases arguments;
      passthru = arguments.passthru or { } // {
        overrideAttrs = change: mkDerivation (arguments // change arguments);
      };
      meta = arguments.meta or { };
    };

  runCommand =
    name: arguments: command:
    fake {
      inherit name;
      inputs = removeAttrs arguments [ "passthru" ];
      shell = { inherit command; };
      # Arguments are attributes of the derivation; of these our Nix reads one.
      passthru =
        arguments.passthru or { } // (if arguments ? text then { inherit (arguments) text; } else { });
      meta = arguments.meta or { };
    };

  buildRustPackage =
    arguments:
    let
      lock = lib.importTOML arguments.cargoLock.lockFile;
      fromGit = lib.filter (package: lib.hasPrefix "git+" (package.source or "")) lock.package;
    in
    if fromGit != [ ] then
      throw "stand-in: crates from git have no hash in Cargo.lock: ${
        toString (map (it: it.name) fromGit)
      }"
    else
      mkDerivation arguments
      // {
        inherit (arguments) pname version;
      };

  set =
    final:
    lib.genAttrs names (
      name:
      fake {
        inherit name;
        meta.mainProgram = lib.removeSuffix "Minimal" name;
      }
    )
    // {
      inherit lib;
      linux_6_12 = fake { name = "linux"; } // {
        version = "6.12";
        src = fake { name = "linux-6.12.tar.xz"; };
      };

      inherit runCommand;
      runCommandLocal = runCommand;
      runCommandCC = runCommand;
      stdenv = { inherit mkDerivation; };
      rustPlatform = { inherit buildRustPackage; };
      pkgsStatic = { inherit (final) rustPlatform; };
      mkShell = arguments: mkDerivation (arguments // { name = "shell"; });
      formats.json = _: { type = lib.types.anything; };
      writeText =
        name: text:
        fake {
          inherit name;
          passthru = { inherit text; };
        };
      writeShellApplication =
        arguments:
        fake {
          inherit (refuse "writeShellApplication" [ "name" "runtimeInputs" "text" ] arguments) name;
          inputs = arguments;
          shell = { inherit (arguments) text; };
          meta.mainProgram = arguments.name;
        };
      linkFarm = name: inputs: fake { inherit name inputs; };
      buildEnv =
        arguments:
        fake {
          inherit (refuse "buildEnv" [ "name" "paths" "pathsToLink" ] arguments) name;
          inputs = arguments;
        };
      closureInfo =
        arguments:
        fake {
          name = "closure-info";
          inputs = refuse "closureInfo" [ "rootPaths" ] arguments;
        };
      testers.runNixOSTest =
        arguments:
        let
          test = refuse "runNixOSTest" [
            "name"
            "globalTimeout"
            "nodes"
            "skipTypeCheck"
            "testScript"
          ] arguments;
          nodes = lib.mapAttrs (
            _: module:
            import ./nixos.nix {
              inherit lib module;
              pkgs = final;
            }
          ) test.nodes;
        in
        fake {
          name = "vm-test-${test.name}";
          inputs = [
            (removeAttrs test [ "nodes" ])
            (lib.mapAttrsToList (_: node: node.rendered) nodes)
          ];
          passthru = {
            inherit nodes;
            inherit (test) testScript;
          };
        };

      # With nothing but the module's own part of NixOS, and names for what an appliance sets beside it.
      nixos =
        module:
        let
          evaluated = import ./nixos.nix {
            inherit lib module;
            pkgs = final;
          };
          image =
            name:
            fake {
              name = "nixos-image-${name}";
              inputs = evaluated.rendered;
            };
        in
        {
          config = evaluated.config // {
            system.build.images = lib.genAttrs [
              "raw"
              "raw-efi"
              "qemu"
              "qemu-efi"
            ] image;
          };
        };
      newScope = extra: callWith (final // extra);
      callPackage = callWith final;
      extend = overlay: withOverlay overlay;
    };

  callWith =
    scope: file: overrides:
    let
      f = if isFunction file then file else import file;
      wanted = functionArgs f;
      missing = lib.filter (name: !(wanted.${name} || overrides ? ${name} || scope ? ${name})) (
        lib.attrNames wanted
      );
      result = f (builtins.intersectAttrs wanted scope // overrides);
    in
    if missing != [ ] then
      throw "stand-in: ${toString file} wants ${toString missing}: misspelt, or not in ${toString ./packages.nix}"
    else if builtins.isAttrs result then
      result // { override = changes: callWith scope f (overrides // changes); }
    else
      result;

  withOverlay =
    overlay:
    let
      previous = set final;
      final = previous // overlay final previous;
    in
    final;
in
withOverlay (_: _: { })

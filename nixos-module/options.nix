{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) literalExpression mkOption types;
  cfg = config.services.rundlet;

  # As node/src/image/name.rs reads names: no empty part, perhaps a tag.
  part = "[a-z0-9._-]+";
  name = types.strMatching "${part}(/${part})*(:[A-Za-z0-9._-]+)?";

  template = types.submodule {
    options = {
      image = mkOption {
        type = name;
        example = "python";
        description = "Name of the image that is booted, one of {option}`services.rundlet.images` or one imported by hand.";
      };
      memory = mkOption {
        type = types.ints.between 32 1048576;
        default = 256;
        example = 128;
        description = "Memory of each clone, in MiB.";
      };
      vcpus = mkOption {
        type = types.ints.between 1 16;
        default = 1;
        example = 2;
        description = "Number of virtual CPUs of each clone.";
      };
      scratchSize = mkOption {
        type = types.ints.positive;
        default = 1024;
        example = 4096;
        description = "Size of the writable layer of each clone, in MiB. It takes space only as it is written.";
      };
      warmUp = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [
          "python3"
          "-c"
          "import json"
        ];
        description = ''
          Command and arguments that run before the template is captured. What it wrote, and processes that it left
          running, are in every clone. Without {option}`readyLine` it has to end with exit code 0.
        '';
      };
      readyLine = mkOption {
        type = types.nullOr types.singleLineStr;
        default = null;
        example = "ready";
        description = ''
          The warm-up is ready when it prints this line on its standard output; it then stays and runs on in every
          clone.
        '';
      };
    };
  };
in
{
  options.services.rundlet = {
    enable = lib.mkEnableOption "a host for Rundlet's sandboxes";

    package = mkOption {
      type = types.package;
      default = pkgs.rundlet;
      defaultText = literalExpression "pkgs.rundlet";
      example = literalExpression "pkgs.rundlet";
      description = "The `rundlet` that is used, with its monitor, block backend, guest kernel and tools.";
    };

    guestKernel = mkOption {
      type = types.nullOr types.package;
      default = null;
      example = literalExpression "pkgs.rundletPackages.guest-kernel";
      description = "A package with `vmlinux` for the guests, in the place of the one that {option}`package` brings.";
    };

    finalPackage = mkOption {
      type = types.package;
      readOnly = true;
      default =
        if cfg.guestKernel == null then
          cfg.package
        else
          cfg.package.override { guest-kernel = cfg.guestKernel; };
      defaultText = literalExpression "package, with guestKernel";
      description = "{option}`package` with {option}`guestKernel`: what is run.";
    };

    images = mkOption {
      type = types.attrsOf (types.either types.package types.path);
      default = { };
      example = literalExpression ''
        { tools = (pkgs.rundletPackages.mkImage { name = "tools"; contents = [ pkgs.busybox ]; }).tar; }
      '';
      description = ''
        Images by name: a root directory or a tar file (plain, gzip or zstd) each, imported when the system is
        activated, and again when its path changes. One that is no longer named here is removed, but not while a sandbox or a template uses it: then the
        next activation tries again.
      '';
    };

    templates = mkOption {
      type = types.attrsOf template;
      default = { };
      example = literalExpression ''{ py = { image = "python"; warmUp = [ "python3" "-c" "import json" ]; }; }'';
      description = ''
        Templates by name, built when the system is activated, for `rundlet run --template`. One is built again when
        its definition, its declared image or {option}`package` changes, or when this host is no longer the one it was made
        on (another processor, another kernel's KVM), and removed as images are. Sandboxes of the one before live on.
      '';
    };

    kvm = {
      restrict = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Let only root and the members of the group `kvm` open /dev/kvm. NixOS lets everybody: on a host for other
          people's work, the kernel's KVM code is something that a stranger's process need not reach.
        '';
      };
      users = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "ci" ];
        description = "Users that are members of the group `kvm`, and so may run sandboxes of their own.";
      };
    };

    host = {
      favorDynamicCgroups = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Mount the cgroup hierarchy with `favordynmods`. Moving a process into a cgroup, and switching controllers, then
          waits for no RCU grace period; every fork and exit pays a little for it. Worth it where sandboxes are put
          into cgroups by the hundred.
        '';
      };
      nxHugePages = mkOption {
        type = types.nullOr (
          types.enum [
            "auto"
            "force"
            "never"
            "off"
          ]
        );
        default = null;
        example = "never";
        description = ''
          KVM's mitigation of the machine check that a guest can cause on some Intel processors (iTLB multihit), parameter
          `kvm.nx_huge_pages`; null leaves it to the kernel. Where it is possible at all KVM starts a kernel thread for
          each VM, and `never` saves that: right only on processors that are not affected
          (/sys/devices/system/cpu/vulnerabilities/itlb_multihit says so).
        '';
      };
      transparentHugePages = mkOption {
        type = types.nullOr (
          types.enum [
            "always"
            "madvise"
            "never"
          ]
        );
        default = null;
        example = "madvise";
        description = ''
          Kernel parameter `transparent_hugepage`; null leaves it to the kernel. Sandboxes are counted in pages of 4 KiB:
          with `always` the kernel may back each of their programs with pages of 2 MiB.
        '';
      };
      swappiness = mkOption {
        type = types.nullOr (types.ints.between 0 200);
        default = null;
        example = 10;
        description = ''
          `vm.swappiness`: how readily memory of processes is swapped instead of the page cache being dropped; null leaves
          it to the system. An idle sandbox is cheap to swap, and its next request waits for the disk.
        '';
      };
    };
  };
}

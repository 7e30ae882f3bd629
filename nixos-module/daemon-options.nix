# The daemon, its pool of cgroups, and what they may use. null leaves a value to the daemon, whose own default the
# description tells.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) literalExpression mkOption types;
  cfg = config.services.rundlet;

  maybe =
    type: example: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit example description;
    };
in
{
  options.services.rundlet = {
    daemon.enable = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = ''
        Run `rundlet serve`, whose API on /run/rundlet/api.sock makes sandboxes that live on when their client ends. Without
        it `rundlet run` and `rundlet fleet` work all the same.
      '';
    };

    settings = mkOption {
      type = (pkgs.formats.json { }).type;
      default = { };
      example = {
        log = "info,rundlet_node::pool=debug";
        cgroup.wait_ms = 200;
      };
      description = ''
        The daemon's configuration, written as it stands to its JSON file. The options beside this one set defaults in it. `rundlet serve
        --check` reads the file when the system is built, so that a field that it does not know fails the build.
      '';
    };

    pool = {
      slots = mkOption {
        type = types.ints.between 1 16384;
        default = 64;
        example = 1000;
        description = "Number of cgroups made ahead. Each living sandbox takes one.";
      };
      slice = mkOption {
        type = types.strMatching "[a-z0-9_]+(-[a-z0-9_]+)*";
        default = "rundlet";
        example = "machine-rundlet";
        description = ''
          Slice of the pool and the daemon, without `.slice`. What all sandboxes together may use is set there, as
          {option}`systemd.slices.<name>.sliceConfig`.
        '';
      };
      waitMs = mkOption {
        type = types.ints.between 0 60000;
        default = 0;
        example = 500;
        description = "How long a start waits when the node is full, in milliseconds: for a sandbox to end, and then for its slot to be empty; 0 refuses it at once.";
      };
    };

    limits = {
      sandboxes =
        maybe types.ints.positive 500
          "Number of living sandboxes; null for as many as there are slots.";
      memoryMiB =
        maybe types.ints.positive 65536
          "Guest memory of all living sandboxes together, in MiB; null lets the daemon decide.";
      startsAtOnce =
        maybe (types.ints.between 1 1024) 8
          "Number of starts that are worked on at the same time; null for 16.";
      startQueue =
        maybe (types.ints.between 0 65536) 200
          "Number of starts that may wait for their turn; null for 1024.";
      startDeadline =
        maybe (types.ints.between 1 3600) 10
          "How long a start may wait for its turn, in seconds; null for 30.";
      firstCommand =
        maybe (types.ints.between 1 3600) 300
          "How long a sandbox that goes with its command waits for it, in seconds: whoever wanted to run it may have died. null for 60.";
      endedRecords =
        maybe (types.ints.between 0 100000) 50
          "Number of sandboxes that have ended and are still listed; null for 1000.";
      perSandbox = {
        cpuMillis =
          maybe (types.ints.between 10 1024000) 1000
            "Processor time of a sandbox that asks for nothing else, in thousandths of a CPU; null for no limit.";
        memoryMiB =
          maybe (types.ints.between 32 4194304) 512
            "`memory.max` of a sandbox that asks for nothing else, its monitor's own memory included, in MiB; null for no limit.";
        pids =
          maybe (types.ints.between 16 4194304) 64
            "Number of threads of the monitor of a sandbox that asks for nothing else (what runs in the guest is not counted); null for no limit.";
      };
    };

    jail = {
      enable = mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = "Run each sandbox's processes under a user id of their own, in namespaces of their own.";
      };
      firstUid = mkOption {
        type = types.ints.between 1 4294967294;
        default = 1900000000;
        example = 3000000;
        description = ''
          The first of the user ids, and of the group ids, of sandboxes. The default is in a range that neither systemd nor
          NixOS gives to anybody.
        '';
      };
      uids = mkOption {
        type = types.ints.positive;
        default = cfg.pool.slots;
        defaultText = literalExpression "config.services.rundlet.pool.slots";
        example = 2000;
        description = "Number of these ids, at least one for each slot.";
      };
    };

    metrics.listen = maybe types.str "127.0.0.1:9464" ''
      Address and port where `/metrics` is served over TCP, for Prometheus; null for the API's socket alone. No port of the firewall is
      opened for it.
    '';

    socket = {
      group = mkOption {
        type = types.strMatching "[a-z_][a-z0-9_-]*";
        default = "rundlet";
        example = "ci";
        description = ''
          Group that may use the API. Its members make sandboxes of whatever the host's memory holds, and import any file that
          root can read: they are administrators of this host in all but name.
        '';
      };
      users = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "ci" ];
        description = "Users that are members of this group.";
      };
    };
  };
}

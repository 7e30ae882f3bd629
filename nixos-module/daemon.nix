# The daemon, and the pool of cgroups that is there before it and stays when it goes.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.rundlet;
  hardening = import ./hardening.nix;
  package = cfg.finalPackage;

  # a-b.slice is in a.slice.
  words = lib.splitString "-" cfg.pool.slice;
  parents = lib.genList (count: lib.concatStringsSep "-" (lib.take (count + 1) words) + ".slice") (
    lib.length words
  );
  root = "/sys/fs/cgroup/${lib.concatStringsSep "/" parents}/rundlet-pool.service";

  given = lib.filterAttrs (_: value: value != null);
  defaults = lib.mapAttrsRecursive (_: lib.mkDefault) {
    run = "/run/rundlet";
    store = "/var/lib/rundlet";
    socket = {
      path = "/run/rundlet/api.sock";
      mode = "0660";
      inherit (cfg.socket) group;
    };
    cgroup = {
      inherit root;
      inherit (cfg.pool) slots;
      wait_ms = cfg.pool.waitMs;
    };
    limits =
      given {
        inherit (cfg.limits) sandboxes;
        memory_mib = cfg.limits.memoryMiB;
        starts_at_once = cfg.limits.startsAtOnce;
        start_queue = cfg.limits.startQueue;
        start_deadline_s = cfg.limits.startDeadline;
        first_command_s = cfg.limits.firstCommand;
        ended_records = cfg.limits.endedRecords;
      }
      // {
        defaults = given {
          cpu_millis = cfg.limits.perSandbox.cpuMillis;
          memory_mib = cfg.limits.perSandbox.memoryMiB;
          inherit (cfg.limits.perSandbox) pids;
        };
      };
    jail = lib.optionalAttrs cfg.jail.enable {
      first_uid = cfg.jail.firstUid;
      inherit (cfg.jail) uids;
    };
    metrics = given { inherit (cfg.metrics) listen; };
  };

  # Without a jail there is no such field.
  settings = lib.filterAttrs (name: value: name != "jail" || value != { }) cfg.settings;

  # Read by the program that will read it, so that a mistake fails the build and not the boot.
  configuration =
    pkgs.runCommandLocal "rundlet.json"
      {
        text = builtins.toJSON settings;
        passAsFile = [ "text" ];
      }
      ''
        cp "$textPath" $out
        ${lib.getExe package} serve --check --config $out
      '';

  metrics = settings.metrics ? listen;
  sockets = [ "rundlet.socket" ] ++ lib.optional metrics "rundlet-metrics.socket";
  # Before the daemon.
  needed = [ "rundlet-pool.service" ] ++ sockets;

  rundlet = verb: "${lib.getExe package} ${verb} --config ${configuration}";
  # Of all sandboxes.
  many = {
    LimitNOFILE = 1048576;
    TasksMax = "infinity";
  };
in
{
  config = lib.mkIf (cfg.enable && cfg.daemon.enable) {
    services.rundlet.settings = defaults;

    users.groups.${cfg.socket.group}.members = cfg.socket.users;

    systemd.slices.${cfg.pool.slice} = {
      description = "Sandboxes and their daemon";
      sliceConfig = {
        CPUAccounting = true;
        IOAccounting = true;
        MemoryAccounting = true;
        TasksAccounting = true;
      };
    };

    systemd.services.rundlet-pool = {
      description = "Cgroups of sandboxes, made ahead";
      # The sandboxes are in its cgroup. More slots are made by the daemon, too.
      restartIfChanged = false;
      serviceConfig =
        hardening.pool
        // many
        // {
          Type = "notify";
          ExecStart = rundlet "pool";
          Slice = "${cfg.pool.slice}.slice";
          Delegate = "cpu io memory pids";
          # Where the pool puts its own process: with slots beside it, the cgroup above can take none (systemd 254).
          DelegateSubgroup = "keeper";
          KillMode = "process";
          Restart = "on-failure";
        };
    };

    systemd.sockets.rundlet = {
      description = "API of the sandbox daemon";
      wantedBy = [ "sockets.target" ];
      socketConfig = {
        ListenStream = settings.socket.path;
        SocketMode = settings.socket.mode;
        SocketGroup = settings.socket.group;
      };
    };

    # Made by systemd, so that the daemon needs no network of its own.
    systemd.sockets.rundlet-metrics = lib.mkIf metrics {
      description = "Metrics of the sandbox daemon";
      wantedBy = [ "sockets.target" ];
      socketConfig = {
        ListenStream = settings.metrics.listen;
        # An address may come up later than the sockets.
        FreeBind = true;
        Service = "rundlet.service";
      };
    };

    systemd.services.rundlet = {
      description = "Sandbox daemon";
      # Not only by its socket: it serves metrics, and looks after what a former daemon left.
      wantedBy = [ "multi-user.target" ];
      requires = needed;
      after = needed ++ [ "systemd-tmpfiles-setup.service" ];
      unitConfig.RequiresMountsFor = "/var/lib/rundlet";
      restartTriggers = [ configuration ];
      serviceConfig =
        hardening.daemon { cgroups = settings.cgroup.root; }
        // many
        // {
          Type = "notify";
          ExecStart = rundlet "serve";
          Slice = "${cfg.pool.slice}.slice";
          # Named for switch-to-configuration, which makes them anew with the service.
          Sockets = sockets;
          # Sandboxes, zygotes and block backends stay when it goes.
          KillMode = "process";
          Restart = "always";
          RestartSec = 1;
        };
    };
  };
}

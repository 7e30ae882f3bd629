# What our units give up. `systemd-analyze security` rates what is left; a claim in vm-tests/ prints its figures.
rec {
  # Of all.
  common = {
    IPAddressDeny = "any";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    # A sandbox is born in the pool's cgroup by the daemon: devices are refused by all, and all let KVM through.
    DeviceAllow = [ "/dev/kvm rw" ];
    DevicePolicy = "closed";
    PrivateDevices = true;
    PrivateMounts = true;
    PrivateNetwork = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RestrictAddressFamilies = [ "AF_UNIX" ];
    RestrictRealtime = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    UMask = "0077";
  };

  # Writes to cgroups that belong to root, and nothing else.
  pool = common // {
    CapabilityBoundingSet = "";
    ProcSubset = "pid";
    ProtectHome = true;
    RestrictNamespaces = true;
    RestrictSUIDSGID = true;
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
  };

  # What works on the store, and starts monitors.
  worker = common // {
    # Of the private devices.
    BindPaths = [ "/dev/kvm" ];
    # Images may be imported from anywhere.
    ProtectHome = "read-only";
    ProtectControlGroups = true;
    ReadWritePaths = [
      "/run/rundlet"
      "/var/lib/rundlet"
    ];
  };
  # Files of images, with all their owners and modes; directories and sockets of sandboxes.
  files = [
    "CAP_CHOWN"
    "CAP_DAC_OVERRIDE"
    "CAP_FOWNER"
    "CAP_FSETID"
  ];

  # Boots machines to make templates of them, as root would by hand: without jails, since what runs in them is declared.
  store = worker // {
    CapabilityBoundingSet = files;
    RestrictNamespaces = true;
    SystemCallFilter = [
      "@system-service"
      "seccomp"
      # A monitor takes over descriptors that it was started with.
      "pidfd_getfd"
      "~@resources"
    ];
  };

  # Its children are the sandboxes, which inherit all of this before they go into their own jails. To make these jails it
  # has to be root with most of what that means. What `systemd-analyze security` counts against it, and cannot be helped:
  #
  # * User=, PrivateUsers=, CAP_SYS_ADMIN, CAP_SET*ID and CAP_SETPCAP, @mount, @privileged: jails, each with a user, a root and
  #   namespaces of its own, without any of these rights once they are closed.
  # * RestrictNamespaces=: with any value it refuses clone3, by which a sandbox is born in its cgroup.
  # * RestrictSUIDSGID=, CAP_CHOWN, CAP_FSETID, CAP_DAC_OVERRIDE, CAP_FOWNER: an image has files of all owners and modes, and
  #   is made of a directory that has them, too.
  # * CAP_KILL: its sandboxes and their block backends are other users.
  # * ProcSubset=: who uses an image is in /proc/locks.
  # * DeviceAllow=, RootDirectory=, ProtectHome=read-only, AF_UNIX: /dev/kvm; images that are imported by path, from anywhere;
  #   the API.
  #
  # Nothing of it needs a network: systemd makes the socket for metrics.
  daemon =
    { cgroups }:
    worker
    // {
      CapabilityBoundingSet = files ++ [
        # Its sandboxes, who are other users.
        "CAP_KILL"
        # What the jails are made of.
        "CAP_SETGID"
        "CAP_SETPCAP"
        "CAP_SETUID"
        "CAP_SYS_ADMIN"
      ];
      # Of all cgroups the pool's own.
      ReadWritePaths = [ cgroups ] ++ worker.ReadWritePaths;
      SystemCallFilter = [
        "@system-service"
        # For the jails.
        "@mount"
        "seccomp"
        "~@resources"
      ];
    };
}

# What our units give up. `systemd-analyze security` rates what is left; a claim in vm-tests/ prints its figures.
rec {
  # Of both.
  common = {
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    # A sandbox is born in the pool's cgroup by the daemon: devices are refused by both, and both let KVM through.
    DeviceAllow = [ "/dev/kvm rw" ];
    DevicePolicy = "closed";
    PrivateTmp = true;
    ProtectClock = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectSystem = "strict";
    RestrictRealtime = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    UMask = "0077";
    # Not ProtectControlGroups: cgroups are what both are about.
  };

  # Writes to cgroups that belong to root, and nothing else.
  pool = common // {
    CapabilityBoundingSet = "";
    PrivateNetwork = true;
    ProcSubset = "pid";
    ProtectHome = true;
    ProtectProc = "invisible";
    RestrictAddressFamilies = [ "AF_UNIX" ];
    RestrictNamespaces = true;
    RestrictSUIDSGID = true;
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
  };

  # Its children are the sandboxes, which inherit all of this before they go into their own jails. To make these jails it
  # has to be root with most of what that means, so it stays above the figure that others reach. Not
  # RestrictNamespaces: it refuses clone3, by which they are born. Not RestrictSUIDSGID: images have such files. Not
  # ProtectProc: the daemon reads of its sandboxes, who are other users.
  daemon =
    { network }:
    common
    // {
      CapabilityBoundingSet = [
        # Directories and sockets of sandboxes, files of images.
        "CAP_CHOWN"
        "CAP_DAC_OVERRIDE"
        "CAP_FOWNER"
        "CAP_FSETID"
        # Its sandboxes, who are other users.
        "CAP_KILL"
        # What the jails are made of.
        "CAP_SETGID"
        "CAP_SETPCAP"
        "CAP_SETUID"
        "CAP_SYS_ADMIN"
        # Descriptors by the thousand.
        "CAP_SYS_RESOURCE"
      ];
      IPAddressDeny = if network then [ ] else [ "any" ];
      PrivateNetwork = !network;
      ProtectHome = "read-only";
      ReadWritePaths = [
        "/run/rundlet"
        "/var/lib/rundlet"
      ];
      RestrictAddressFamilies = [
        "AF_UNIX"
      ]
      ++ (
        if network then
          [
            "AF_INET"
            "AF_INET6"
          ]
        else
          [ ]
      );
      SystemCallFilter = [
        "@system-service"
        # For the jails.
        "@mount"
        "seccomp"
        # A monitor takes over descriptors that it was started with.
        "pidfd_getfd"
      ];
    };
}

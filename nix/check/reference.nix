# A host with every option of ours set: what it renders is in vm-tests/golden/.
{ pkgs, ... }:
let
  image =
    name:
    pkgs.rundletPackages.mkImage {
      inherit name;
      contents = [ pkgs.busybox ];
    };
in
{
  services.rundlet = {
    enable = true;
    guestKernel = pkgs.rundletPackages.guest-kernel;
    images = {
      tools = (image "tools").tar;
      "team/plain:v1" = "/srv/plain.tar.zst";
    };
    templates = {
      plain.image = "team/plain:v1";
      server = {
        image = "tools";
        memory = 128;
        vcpus = 2;
        scratchSize = 64;
        warmUp = [
          "sh"
          "-c"
          "echo ready; exec sleep 1000000"
        ];
        readyLine = "ready";
      };
    };
    settings.log = "info,rundlet_node::pool=debug";
    pool = {
      slots = 8;
      slice = "rundlet";
      waitMs = 200;
    };
    limits = {
      sandboxes = 6;
      memoryMiB = 2048;
      startsAtOnce = 2;
      startQueue = 100;
      startDeadline = 60;
      firstCommand = 120;
      endedRecords = 50;
      perSandbox = {
        cpuMillis = 2000;
        memoryMiB = 512;
        pids = 64;
      };
    };
    jail = {
      firstUid = 1900000000;
      uids = 16;
    };
    metrics.listen = "127.0.0.1:9464";
    socket = {
      group = "rundlet";
      users = [ "ci" ];
    };
    kvm = {
      restrict = true;
      users = [ "ci" ];
    };
    host = {
      favorDynamicCgroups = true;
      nxHugePages = "never";
      transparentHugePages = "madvise";
      swappiness = 10;
    };
  };
  fileSystems = {
    "/" = {
      device = "/dev/vda1";
      fsType = "ext4";
    };
    "/var/lib/rundlet" = {
      device = "/dev/vda2";
      fsType = "xfs";
    };
  };
}

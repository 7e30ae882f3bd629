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

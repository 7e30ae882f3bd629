# The machine of a claim under NixOS: what README.md says of the worker, with our module on.
rundletPackages:
{ lib, pkgs, ... }:
let
  inherit (rundletPackages) guest-image-python rundlet;

  tools = pkgs.runCommandLocal "rundlet-test-tools" { buildInputs = [ pkgs.python3 ]; } ''
    install -D -t $out/bin ${./tools}/*
    patchShebangs $out/bin
  '';

  # The paths that claims name.
  files = pkgs.linkFarm "rundlet-test-files" {
    bin = "${tools}/bin";
    "share/rundlet" = rundlet.guest;
    "test/debian.tar" = guest-image-python.tar;
    "test/README.md" = ../README.md;
    "test/golden" = ./golden;
  };

  keeper = pkgs.runCommandCC "kvm-keeper" { } ''
    mkdir -p $out/bin
    $CC -O2 -Wall -Wextra -Werror -o $out/bin/kvm-keeper ${./worker/kvm-keeper.c}
  '';
in
{
  imports = [ ../nixos-module ];

  services.rundlet = {
    enable = true;
    package = rundlet;
    # Not Debian, for all that claims ask of it.
    images.debian = guest-image-python.tar;
  };

  environment = {
    systemPackages = [
      rundletPackages.rundlet-vmm
      rundletPackages.vhost-blk-ro
      tools
      pkgs.e2fsprogs
      pkgs.erofs-utils
      pkgs.psmisc
      pkgs.python3
      pkgs.strace
      pkgs.xfsprogs
    ];
    variables.RUNDLET_TEST_FILES = "/opt/rundlet/test";
  };

  systemd.tmpfiles.rules = [ "L+ /opt/rundlet - - - - ${files}" ];

  # Emulated, vCPUs that come and go can kill the machine: the head of kvm-keeper.c says why.
  systemd.services.kvm-keeper = {
    description = "Keep KVM's static keys from flipping";
    wantedBy = [ "multi-user.target" ];
    before = [
      "rundlet.service"
      "rundlet-store.service"
    ];
    path = [ pkgs.kmod ];
    preStart = "grep -qw svm /proc/cpuinfo && exec modprobe kvm-amd; exec modprobe kvm-intel";
    serviceConfig = {
      Type = "forking";
      ExecStart = lib.getExe' keeper "kvm-keeper";
    };
  };

  virtualisation = {
    cores = 2;
    memorySize = 6144;
    emptyDiskImages = [ 16384 ];
    # Everything that QEMU can emulate, AMD's SVM among it: real KVM in the machine, also where the host has none.
    qemu.options = [ "-cpu max" ];
    fileSystems."/var/lib/rundlet" = {
      device = "/dev/vdb";
      fsType = "xfs";
      autoFormat = true;
    };
  };
}

# The machine around the sandboxes. What is not asked for stays as NixOS has it.
{ config, lib, ... }:
let
  cfg = config.services.rundlet;
in
{
  config = lib.mkIf cfg.enable {
    users.groups.kvm.members = cfg.kvm.users;

    services.udev.extraRules = lib.mkIf cfg.kvm.restrict ''
      SUBSYSTEM=="misc", KERNEL=="kvm", GROUP="kvm", MODE="0660"
    '';

    boot.kernelParams =
      lib.optional cfg.host.favorDynamicCgroups "cgroup_favordynmods=true"
      ++ lib.optional (
        cfg.host.transparentHugePages != null
      ) "transparent_hugepage=${cfg.host.transparentHugePages}";

    boot.extraModprobeConfig = lib.mkIf (cfg.host.nxHugePages != null) ''
      options kvm nx_huge_pages=${cfg.host.nxHugePages}
    '';

    boot.kernel.sysctl = lib.mkIf (cfg.host.swappiness != null) {
      "vm.swappiness" = cfg.host.swappiness;
    };
  };
}

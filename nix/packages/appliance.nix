# A worker host as a disk image: boots by UEFI, runs the daemon, takes sandboxes of whoever gets at its API. What a real host
# adds is in a module of its own: keys for ssh, a network, images.
{
  nixos,
  rundlet,
}:
let
  machine = nixos {
    imports = [ ../../nixos-module ];

    services.rundlet = {
      enable = true;
      package = rundlet;
      pool.slots = 1000;
    };

    networking.hostName = "rundlet-worker";
    # Nobody can log in but on the console, as root without a password.
    users.users.root.initialHashedPassword = "";
    services.openssh = {
      enable = true;
      settings.PermitRootLogin = "prohibit-password";
    };
    system.stateVersion = "26.05";
  };
in
machine.config.system.build.images.raw-efi

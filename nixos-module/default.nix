# services.rundlet: a host that runs sandboxes. There is no daemon: `rundlet` is a command, and what is declared here is
# the host around it, its store and who may use KVM.
{
  imports = [
    ./options.nix
    ./store.nix
    ./host.nix
    ./asserts.nix
  ];
}

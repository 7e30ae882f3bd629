# services.rundlet: a host that runs sandboxes. The daemon and its cgroups, the store, the host around them, and who may
# use KVM and the API.
{
  imports = [
    ./options.nix
    ./daemon-options.nix
    ./daemon.nix
    ./store.nix
    ./host.nix
    ./asserts.nix
  ];
}

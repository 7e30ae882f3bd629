# PID 1 of the guest: one static binary. As in guest-userspace/initrd.sh it is not position independent: an address
# that needs no fixing at start is a page that is not dirtied.
{ buildCrate, pkgsStatic }:
buildCrate {
  folder = "guest-userspace";
  rustPlatform' = pkgsStatic.rustPlatform;
  buildType = "guest";
  env.RUSTFLAGS = "-C target-feature=+crt-static -C relocation-model=static";
}

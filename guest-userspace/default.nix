# The guest's init in an initramfs: initrd.sh packs what nix/packages/rundlet-init.nix built.
{
  binutils,
  lib,
  rundlet-init,
  runCommandLocal,
}:
runCommandLocal "rundlet-guest-initrd" { nativeBuildInputs = [ binutils ]; } ''
  bash ${./initrd.sh} --init ${lib.getExe rundlet-init} $out/initrd.cpio
''

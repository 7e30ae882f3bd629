# The command line, knowing where its programs, its guest and the tools of the distribution are. The variables are
# defaults: who sets them wins. The process is still called `rundlet`.
{
  lib,
  e2fsprogs,
  erofs-utils,
  guest-initrd,
  guest-kernel,
  linkFarm,
  makeBinaryWrapper,
  rundlet-unwrapped,
  rundlet-vmm,
  runCommandLocal,
  vhost-blk-ro,
}:
let
  programs = linkFarm "rundlet-libexec" (
    lib.genAttrs' [ rundlet-vmm vhost-blk-ro ] (program: {
      name = program.meta.mainProgram;
      value = lib.getExe program;
    })
  );
  guest = linkFarm "rundlet-guest" {
    vmlinux = "${guest-kernel}/vmlinux";
    "initrd.cpio" = "${guest-initrd}/initrd.cpio";
  };
in
runCommandLocal "rundlet-${rundlet-unwrapped.version}"
  {
    pname = "rundlet";
    inherit (rundlet-unwrapped) version meta;
    nativeBuildInputs = [ makeBinaryWrapper ];
    passthru = { inherit guest programs; };
  }
  ''
    makeWrapper ${lib.getExe rundlet-unwrapped} $out/bin/rundlet \
      --set-default RUNDLET_LIBEXEC ${programs} \
      --set-default RUNDLET_GUEST ${guest} \
      --prefix PATH : ${
        lib.makeBinPath [
          e2fsprogs
          erofs-utils
        ]
      }
  ''

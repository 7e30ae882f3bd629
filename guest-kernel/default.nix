# The guest kernel: build.sh on nixpkgs' Linux 6.12, so that patches, config, their check and the result are made by
# the same script as everywhere else. `tests.config` stops after the config check.
{
  lib,
  bc,
  bison,
  elfutils,
  flex,
  linux_6_12,
  perl,
  stdenv,
  util-linux,
}:
let
  scripts = lib.fileset.toSource {
    root = ./.;
    fileset = lib.fileset.unions [
      ./build.sh
      ./config.sh
      ./config
      ./patches
    ];
  };

  build =
    pname: arguments: install:
    stdenv.mkDerivation {
      inherit pname;
      inherit (linux_6_12) version src;

      nativeBuildInputs = [
        bc
        bison
        flex
        perl
        util-linux
      ];
      # For objtool, which runs where the kernel is built.
      buildInputs = [ elfutils ];
      # The kernel says itself how it is hardened.
      hardeningDisable = [ "all" ];
      enableParallelBuilding = true;

      # Scripts of the kernel and ours name interpreters where the build sandbox has none.
      postPatch = ''
        cp -r --no-preserve=mode ${scripts} ../guest-kernel
        chmod +x ../guest-kernel/*.sh
        patchShebangs scripts tools ../guest-kernel
        # The kernel's build takes a variable of this name for its own.
        unset src
      '';
      dontConfigure = true;
      buildPhase = ''
        runHook preBuild
        RUNDLET_CACHE=$NIX_BUILD_TOP/cache ../guest-kernel/build.sh --source "$PWD" \
          --output "$NIX_BUILD_TOP/vmlinux" --jobs "$NIX_BUILD_CORES" ${arguments}
        runHook postBuild
      '';
      installPhase = ''
        runHook preInstall
        ${install}
        runHook postInstall
      '';
      # build.sh has stripped what is to be stripped.
      dontStrip = true;
      dontPatchELF = true;

      passthru = { inherit scripts; };
      meta = {
        description = "Linux for the guests of Rundlet";
        license = lib.licenses.gpl2Only;
        platforms = [ "x86_64-linux" ];
      };
    };
in
(build "rundlet-guest-kernel" "" ''
  install -D -m 644 "$NIX_BUILD_TOP/vmlinux" $out/vmlinux
  install -m 644 -t $out "$NIX_BUILD_TOP"/cache/kernel/*/{System.map,config}
'').overrideAttrs
  (previous: {
    passthru = previous.passthru // {
      tests.config = build "rundlet-guest-kernel-config" "--config-only" ''
        install -D -m 644 "$NIX_BUILD_TOP"/cache/kernel/work-*/.config $out
      '';
    };
  })

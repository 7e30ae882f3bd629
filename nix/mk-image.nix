# A Nix closure, or an OCI tarball such as dockerTools makes, into an image at build time:
#
#   mkImage { name = "tools"; contents = [ pkgs.jq ]; }       programs in /bin, with all that they need
#   mkImage { name = "app"; archive = <docker or OCI archive>; }
#
# The result is the EROFS file as `rundlet image import` makes it, by that very command. `.tar` is the root file system
# as a tar file: what `rundlet image import` takes on a machine, where it can give files other owners than root.
{
  lib,
  buildEnv,
  closureInfo,
  python3Minimal,
  rundlet-unwrapped,
  runCommandLocal,
  erofs-utils,
}:
{
  name,
  contents ? [ ],
  archive ? null,
}:
assert lib.assertMsg (
  (contents == [ ]) != (archive == null)
) "mkImage ${name}: give either `contents`, a list of packages, or `archive`, an OCI tarball";
let
  environment = buildEnv {
    name = "${name}-environment";
    paths = contents;
    pathsToLink = [
      "/bin"
      "/etc"
      "/share"
    ];
  };

  # Store paths as they are, with links where programs are looked for.
  ofClosure = ''
    mkdir -p root/{dev,etc,home,nix/store,proc,root,run,sys,tmp,usr,var/tmp}
    ln -s ${environment}/bin root/bin
    ln -s ${environment}/bin root/usr/bin
    ln -s ${environment}/bin root/sbin
    ln -s ${environment}/share root/usr/share
    chmod 1777 root/tmp root/var/tmp
    printf '%s\n' 'root:x:0:0::/root:/bin/sh' 'nobody:x:65534:65534::/var/empty:/bin/false' >root/etc/passwd
    printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >root/etc/group
    echo '127.0.0.1 localhost' >root/etc/hosts
    common=(--sort=name --owner=0 --group=0 --numeric-owner --mtime=@1 --hard-dereference)
    tar --create --file $out "''${common[@]}" --directory root .
    tar --append --file $out "''${common[@]}" --directory / \
      --files-from <(sed 's,^/,,' ${closureInfo { rootPaths = [ environment ]; }}/store-paths)
  '';

  ofArchive = ''
    ${lib.getExe python3Minimal} ${./flatten_oci.py} ${archive} $out
  '';

  tar = runCommandLocal "${name}.tar" { } (if archive == null then ofClosure else ofArchive);
in
runCommandLocal "${name}.erofs"
  {
    nativeBuildInputs = [
      erofs-utils
      rundlet-unwrapped
    ];
    passthru = { inherit tar; };
  }
  ''
    RUNDLET_STORE=$PWD/store rundlet image import ${tar} image
    cp store/images/*.erofs $out
  ''

# What most claims and the demo run: a shell, the usual programs, Python.
{
  bash,
  coreutils,
  diffutils,
  findutils,
  gawk,
  gnugrep,
  gnused,
  iproute2,
  mkImage,
  procps,
  python3,
  util-linux,
}:
mkImage {
  name = "python";
  contents = [
    bash
    coreutils
    diffutils
    findutils
    gawk
    gnugrep
    gnused
    iproute2
    procps
    python3
    util-linux
  ];
}

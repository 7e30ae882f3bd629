# The smallest useful root file system: a shell and the usual small programs.
{ busybox, mkImage }:
mkImage {
  name = "minimal";
  contents = [ busybox ];
}

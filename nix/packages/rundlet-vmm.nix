{ buildCrate }:
buildCrate { folder = "vmm"; }

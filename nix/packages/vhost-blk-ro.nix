{ buildCrate }:
buildCrate { folder = "vhost-blk-ro"; }

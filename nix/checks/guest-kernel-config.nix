# Every line of the config fragments survives on nixpkgs' kernel source: minutes before a whole build would say so.
{ guest-kernel }: guest-kernel.tests.config

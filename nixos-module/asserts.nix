# What cannot work; each says what to do.
{ config, lib, ... }:
let
  cfg = config.services.rundlet;

  oldCgroups = [
    "systemd.unified_cgroup_hierarchy=0"
    "systemd.unified_cgroup_hierarchy=no"
    "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
  ];
  asked = lib.intersectLists oldCgroups config.boot.kernelParams;

  untagged = names: map (name: lib.removeSuffix ":latest" name) (lib.attrNames names);
  twice = names: lib.filter (name: lib.count (it: it == name) names > 1) (lib.unique names);
  doubles = twice (untagged cfg.images) ++ twice (untagged cfg.templates);
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = asked == [ ];
        message = "services.rundlet needs cgroup v2: remove ${toString asked} from boot.kernelParams.";
      }
      {
        assertion = doubles == [ ];
        message = "services.rundlet declares ${toString doubles} twice, with and without the tag latest: remove one of the two.";
      }
      {
        assertion = lib.all (template: template.readyLine == null || template.warmUp != [ ]) (
          lib.attrValues cfg.templates
        );
        message = "services.rundlet.templates: a readyLine is printed by a warm-up; set warmUp as well, or remove readyLine.";
      }
    ];
  };
}

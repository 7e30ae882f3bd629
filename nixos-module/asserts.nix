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

  # Only what is set: an option's value, or what `settings` says in its place.
  inherit (cfg.settings) cgroup jail limits;
  sandboxes = limits.sandboxes or cgroup.slots;
  last = jail.first_uid + jail.uids - 1;
  taken = lib.attrNames (
    lib.filterAttrs (
      _: user: user.uid != null && user.uid >= jail.first_uid && user.uid <= last
    ) config.users.users
  );

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
    ]
    ++ lib.optionals cfg.daemon.enable (
      [
        {
          assertion = sandboxes <= cgroup.slots;
          message = "services.rundlet: ${toString sandboxes} sandboxes need as many slots, and pool.slots is ${toString cgroup.slots}: raise it, or lower limits.sandboxes.";
        }
        {
          assertion =
            lib.hasPrefix "/sys/fs/cgroup/" cgroup.root && lib.hasSuffix "/rundlet-pool.service" cgroup.root;
          message = "services.rundlet.settings.cgroup.root is ${cgroup.root}, which systemd gives to nobody: remove it, and set pool.slice for another place.";
        }
      ]
      ++ lib.optionals (jail != { }) [
        {
          assertion = jail.uids >= cgroup.slots;
          message = "services.rundlet.jail.uids is ${toString jail.uids}, and each of the ${toString cgroup.slots} slots needs one: raise it, or remove it.";
        }
        {
          assertion = last <= 4294967294;
          message = "services.rundlet.jail: ${toString jail.uids} ids from ${toString jail.first_uid} on go past 4294967294, the last there is: lower firstUid.";
        }
        {
          assertion = taken == [ ];
          message = "services.rundlet.jail: the ids ${toString jail.first_uid} to ${toString last} are those of sandboxes, but ${toString taken} has one of them: move jail.firstUid.";
        }
      ]
    );
  };
}

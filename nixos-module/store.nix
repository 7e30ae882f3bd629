# The programs, the state directory, and the images and templates that are declared.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.rundlet;

  hardening = import ./hardening.nix;
  package = cfg.finalPackage;

  # The store's own form of a name: `latest` where there is no tag.
  full = name: if lib.hasInfix ":" name then name else "${name}:latest";

  images = lib.mapAttrs' (
    name: source:
    lib.nameValuePair (full name) {
      make = [
        "import"
        "${source}"
        name
      ];
    }
  ) cfg.images;

  templates = lib.mapAttrs' (
    name: template:
    lib.nameValuePair (full name) {
      # What is not in the command, and makes another template all the same.
      because = [
        "${package}"
        images.${full template.image} or null
      ];
      make = [
        "build"
        "--memory"
        (toString template.memory)
        "--vcpus"
        (toString template.vcpus)
        "--scratch-size"
        (toString template.scratchSize)
      ]
      ++ lib.optionals (template.readyLine != null) [
        "--ready-line"
        template.readyLine
      ]
      ++ [
        template.image
        name
      ]
      ++ lib.optionals (template.warmUp != [ ]) ([ "--" ] ++ template.warmUp);
    }
  ) cfg.templates;

  declared = pkgs.writeText "rundlet-declared.json" (
    builtins.toJSON {
      image = images;
      template = templates;
    }
  );
in
{
  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ package ];

    # Root's own: images hold other people's files, with their owners.
    systemd.tmpfiles.rules = [
      "d /var/lib/rundlet 0700 root root -"
      (
        if cfg.daemon.enable then
          # Who may use the API has to reach its socket, and nothing else there.
          "d /run/rundlet 0710 root ${cfg.socket.group} -"
        else
          "d /run/rundlet 0700 root root -"
      )
    ];

    systemd.services.rundlet-store = {
      description = "Images and templates that the configuration declares";
      wantedBy = [ "multi-user.target" ];
      # After the daemon, which tells what its sandboxes use: asked while it is being restarted, nobody would know.
      after = [ "systemd-tmpfiles-setup.service" ] ++ lib.optional cfg.daemon.enable "rundlet.service";
      unitConfig.RequiresMountsFor = "/var/lib/rundlet";
      restartTriggers = [ declared ];
      serviceConfig = hardening.store // {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${lib.getExe pkgs.python3Minimal} ${./declare.py} ${lib.getExe package} ${declared} /var/lib/rundlet/declared.json";
        # Building a template boots a machine for each.
        TimeoutStartSec = "1h";
      };
    };
  };
}

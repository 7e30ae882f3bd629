# Configurations that must not evaluate, each with words that the message has to have.
let
  rundlet = settings: {
    services.rundlet = {
      enable = true;
    }
    // settings;
  };
in
{
  misspelt-option = {
    module = rundlet { image = { }; };
    words = "services.rundlet.image";
  };
  misspelt-template-option = {
    module = rundlet {
      templates.a = {
        image = "b";
        mem = 1;
      };
    };
    words = "mem";
  };
  memory-is-a-number = {
    module = rundlet {
      templates.a = {
        image = "b";
        memory = "128M";
      };
    };
    words = "memory";
  };
  image-is-a-path = {
    module = rundlet { images.a = "debian"; };
    words = "images.a";
  };
  template-has-an-image = {
    module = rundlet { templates.a = { }; };
    words = "image";
  };
  name-of-an-image = {
    module = rundlet { templates.a.image = "No Name"; };
    words = "image";
  };
  cgroup-v1 = {
    module = {
      imports = [ (rundlet { }) ];
      boot.kernelParams = [ "systemd.unified_cgroup_hierarchy=0" ];
    };
    words = "cgroup v2";
  };
  one-name-twice = {
    module = rundlet {
      images.a = "/a.tar";
      images."a:latest" = "/b.tar";
    };
    words = "declares a twice";
  };
  ready-line-of-nothing = {
    module = rundlet {
      templates.a = {
        image = "b";
        readyLine = "ready";
      };
    };
    words = "warmUp";
  };
  slots-are-a-number = {
    module = rundlet { pool.slots = "8"; };
    words = "pool.slots";
  };
  slice-without-its-ending = {
    module = rundlet { pool.slice = "rundlet.slice"; };
    words = "pool.slice";
  };
  more-sandboxes-than-slots = {
    module = rundlet {
      pool.slots = 8;
      limits.sandboxes = 9;
    };
    words = "raise it, or lower limits.sandboxes";
  };
  more-slots-than-ids = {
    module = rundlet {
      pool.slots = 8;
      jail.uids = 7;
    };
    words = "services.rundlet.jail.uids is 7";
  };
  ids-past-the-last = {
    module = rundlet {
      jail.firstUid = 4294967290;
      pool.slots = 8;
    };
    words = "lower firstUid";
  };
  ids-of-somebody-else = {
    module = {
      imports = [ (rundlet { jail.firstUid = 2000; }) ];
      users.users.guest = {
        isNormalUser = true;
        uid = 2010;
      };
    };
    words = "guest has one of them";
  };
  cgroup-of-nobody = {
    module = rundlet { settings.cgroup.root = "/sys/fs/cgroup/mine"; };
    words = "which systemd gives to nobody";
  };
}

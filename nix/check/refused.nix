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
}

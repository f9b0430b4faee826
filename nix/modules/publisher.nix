# `services.dormer.publisher`: brings caches to the edge targets of `services.dormer.settings.edge`,
# by a timer or continuously. It may run beside the server, or on another machine with the same
# database and store.
{
  config,
  lib,
  ...
}:

let
  cfg = config.services.dormer;
  inherit (lib) mkOption types;
  words = [
    (lib.getExe cfg.package)
    "publish"
  ]
  ++ lib.optional (cfg.publisher.target != null) cfg.publisher.target
  ++ lib.optional cfg.publisher.watch "--watch"
  ++ [
    "--config"
    "${cfg.settingsFile}"
  ];
in
{
  imports = [ ./settings.nix ];

  options.services.dormer.publisher = {
    watch = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to follow each change, instead of a timer.";
    };

    schedule = mkOption {
      type = types.str;
      default = "*:0/15";
      example = "hourly";
      description = "When to publish, as in {manpage}`systemd.time(7)`.";
    };

    target = mkOption {
      type = types.nullOr (types.strMatching "[A-Za-z0-9][A-Za-z0-9_-]*");
      default = null;
      description = "The edge target to publish to; all of them by default.";
    };
  };

  config = lib.mkIf cfg.publisher.enable {
    assertions = [
      {
        assertion = cfg.settings ? edge && cfg.settings.edge != [ ];
        message = "services.dormer.publisher has nothing to publish to: services.dormer.settings.edge is empty.";
      }
      {
        assertion =
          cfg.publisher.target == null
          || lib.any (edge: edge.name or null == cfg.publisher.target) (cfg.settings.edge or [ ]);
        message =
          "services.dormer.publisher.target: services.dormer.settings.edge has no target "
          + "${toString cfg.publisher.target}.";
      }
    ];

    systemd.services.dormer-publisher = {
      description = "Dormer's publisher";
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "dormer.service"
      ];
      wantedBy = lib.mkIf cfg.publisher.watch [ "multi-user.target" ];
      environment = lib.optionalAttrs (cfg.credentials ? master-key) {
        DORMER_MASTER_KEY_FILE = "%d/master-key";
      };
      serviceConfig =
        import ./unit.nix { inherit lib cfg; }
        // {
          ExecStart = lib.escapeShellArgs words;
          # A run that stops waits for its requests under way.
          TimeoutStopSec = import ./stop-time.nix { inherit lib; } (
            map (edge: edge.timeout or "60s") (cfg.settings.edge or [ ])
          );
        }
        // (
          if cfg.publisher.watch then
            {
              Restart = "always";
              RestartSec = 5;
            }
          else
            # A run ends when everything is published; the first one may take hours.
            {
              Type = "oneshot";
              TimeoutStartSec = "infinity";
            }
        );
    };

    systemd.timers.dormer-publisher = lib.mkIf (!cfg.publisher.watch) {
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnCalendar = cfg.publisher.schedule;
        # After an outage, at once.
        Persistent = true;
      };
    };
  };
}

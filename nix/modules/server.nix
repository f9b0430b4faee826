# `services.dormer`: a read-write cache. The embedded defaults need no setting at all: the database,
# the packs and the secrets lie in /var/lib/dormer.
{
  config,
  lib,
  ...
}:

let
  cfg = config.services.dormer;
  port = builtins.match ".*:([0-9]+)" cfg.settings.listen;
  onSocket = lib.hasPrefix "unix:" cfg.settings.listen;
  limits = cfg.settings.limits or { };
in
{
  imports = [ ./settings.nix ];

  options.services.dormer.openFirewall = lib.mkOption {
    type = lib.types.bool;
    default = false;
    description = ''
      Whether to open the port of {option}`services.dormer.settings.listen`. A proxy that speaks TLS
      should stand in front of the server, and then this is not needed.
    '';
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.openFirewall -> !onSocket && !lib.hasPrefix "127." cfg.settings.listen;
        message =
          "services.dormer.openFirewall has no effect: the server listens on ${cfg.settings.listen}, "
          + "where no other machine reaches it.";
      }
      {
        assertion = port == null || lib.toInt (lib.head port) >= 1024;
        message = "services.dormer.settings.listen: the server may not use a port below 1024.";
      }
    ];

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ (lib.toInt (lib.head port)) ];

    systemd.services.dormer = {
      description = "Dormer, a Nix binary cache";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "postgresql.service"
      ];
      environment = lib.optionalAttrs (cfg.credentials ? master-key) {
        DORMER_MASTER_KEY_FILE = "%d/master-key";
      };
      serviceConfig = import ./unit.nix { inherit lib cfg; } // {
        ExecStart = "${lib.getExe cfg.package} serve --config ${cfg.settingsFile}";
        Restart = "on-failure";
        RestartSec = 5;
        # The defaults are those of docs/SETTINGS.md.
        TimeoutStopSec = import ./stop-time.nix { inherit lib; } [
          (limits.drain-delay or "0s")
          (limits.shutdown-timeout or "30s")
        ];
        LimitNOFILE = 65536;
      };
    };
  };
}

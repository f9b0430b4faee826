# What the units of the server and of the publisher have in common: the user, the folder, the
# secrets, and how little of the system they see. Nothing here needs a capability.
{ lib, cfg }:
{
  User = cfg.user;
  Group = cfg.group;
  StateDirectory = "dormer";
  StateDirectoryMode = "0700";
  RuntimeDirectory = "dormer";
  RuntimeDirectoryPreserve = true;
  WorkingDirectory = "/var/lib/dormer";
  # The file is read by systemd, as root, before the process starts.
  EnvironmentFile = lib.optional (cfg.environmentFile != null) cfg.environmentFile;
  # The process reads its own copy, which no other user can read.
  LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") cfg.credentials;

  UMask = "0077";
  AmbientCapabilities = "";
  CapabilityBoundingSet = "";
  DevicePolicy = "closed";
  LockPersonality = true;
  MemoryDenyWriteExecute = true;
  NoNewPrivileges = true;
  PrivateDevices = true;
  PrivateTmp = true;
  PrivateUsers = true;
  ProcSubset = "pid";
  ProtectClock = true;
  ProtectControlGroups = true;
  ProtectHome = true;
  ProtectHostname = true;
  ProtectKernelLogs = true;
  ProtectKernelModules = true;
  ProtectKernelTunables = true;
  ProtectProc = "invisible";
  ProtectSystem = "strict";
  RemoveIPC = true;
  RestrictAddressFamilies = [
    "AF_INET"
    "AF_INET6"
    "AF_UNIX"
  ];
  RestrictNamespaces = true;
  RestrictRealtime = true;
  RestrictSUIDSGID = true;
  SystemCallArchitectures = "native";
  SystemCallFilter = [
    "@system-service"
    "~@privileged @resources"
  ];
}

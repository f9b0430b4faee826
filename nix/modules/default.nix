# All modules. None of them changes anything before it is enabled.
{
  imports = [
    ./server.nix
    ./publisher.nix
    ./client.nix
    ./queue.nix
  ];
}

/** What `gantry status` and `gantry hosts` say before there is a host. */
export const NO_HOST =
  'No host is configured. Run `gantry-agent invite` on a GPU host, and here the line that it prints. ' +
  '`gantry doctor` says what else is missing.';

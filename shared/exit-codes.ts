/** Of sysexits.h, where it has a word for it: what a script can do about the end of a command. */
export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  unavailable: 69,
  cannotCreate: 73,
  ioError: 74,
  tryLater: 75,
  denied: 77,
  config: 78,
  interrupted: 130,
} as const;

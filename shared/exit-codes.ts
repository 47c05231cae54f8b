/** Of sysexits.h, where it has a word for it: what a script can do about the end of a command. */
export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  /** Some of the images are there, others failed. */
  partial: 3,
  badInput: 65,
  unavailable: 69,
  cannotCreate: 73,
  ioError: 74,
  tryLater: 75,
  denied: 77,
  config: 78,
  /** The end of the terminal, Ctrl-C and the wish of another program, as shells number them. */
  hungUp: 129,
  interrupted: 130,
  terminated: 143,
} as const;

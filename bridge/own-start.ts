import { realpathSync } from 'node:fs';
import { resolve } from 'node:path';
import { clientsNamed } from './cli/clients.ts';
import { printClients } from './cli/print-clients.ts';
import { openScreen } from './cli/screen.ts';
import { clientPlaces, colourWish } from './config.ts';
import type { SessionFlags } from './session.ts';

/** `gantry clients`: needs no configuration, and works before there is one. */
export async function showClients(name: string | undefined, flags: SessionFlags): Promise<void> {
  const [, program = ''] = process.argv;
  // Absolute, because a program that was started from a desktop finds neither `node` nor a relative path.
  const args = [
    realpathSync(program),
    'bridge',
    ...(flags.config === undefined ? [] : ['--config', resolve(flags.config)]),
  ];
  printClients(clientsNamed(name), {
    start: { command: process.execPath, args },
    places: clientPlaces(),
    screen: openScreen(flags, colourWish()),
  });
}

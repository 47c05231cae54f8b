import { pause } from '../../shared/abort.ts';
import type { HostClient } from './host-client.ts';
import type { Screen } from './screen.ts';

const LOOK_EVERY_MS = 500;

/** Takes the host out of service; with `isWaiting` it returns when nothing runs any more, or at the signal. */
export async function drain(
  client: HostClient,
  { isWaiting, signal, write }: Pick<Screen, 'write'> & { isWaiting: boolean; signal: AbortSignal },
): Promise<void> {
  let { running } = await client.ask('host.drain', {});
  write(`The host takes no new work. ${runningText(running)}\n`);
  while (isWaiting && running > 0 && !signal.aborted) {
    await pause(LOOK_EVERY_MS, signal);
    const { snapshot } = await client.ask('host.snapshot', {});
    if (!snapshot.isDraining) {
      write('Somebody resumed it meanwhile.\n');
      return;
    }
    const before = running;
    ({ running } = await client.ask('host.drain', {}));
    if (running !== before) write(`${runningText(running)}\n`);
  }
}

export async function resume(client: HostClient, { write }: Pick<Screen, 'write'>): Promise<void> {
  await client.ask('host.resume', {});
  write('The host takes part again.\n');
}

function runningText(running: number): string {
  if (running === 0) return 'Nothing runs any more.';
  return running === 1 ? 'One job is still running.' : `${running} jobs are still running.`;
}

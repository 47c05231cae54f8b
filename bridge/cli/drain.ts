import { pause } from '../../shared/abort.ts';
import type { Session } from '../session.ts';
import { printJson, printLines } from './screen.ts';

const LOOK_EVERY_MS = 500;

/** Takes a host out of service: what runs ends, nothing new begins, until `resume`. */
export async function drainHost(
  host: string,
  { isWaiting, session }: { isWaiting: boolean; session: Session },
): Promise<void> {
  const { screen, signal } = session;
  const fleet = await session.hosts();
  let { running } = await fleet.request(host, 'host.drain', {}, signal);
  if (!screen.isJson) printLines(screen, [`${host} takes no new work. ${runningText(running)}`]);
  let wasSeen = false;
  while (isWaiting && running > 0) {
    await pause(LOOK_EVERY_MS, signal);
    signal.throwIfAborted();
    const before = running;
    // Its status comes a moment later than its answers.
    const isDraining = fleet.hosts().find(({ name }) => name === host)?.snapshot?.isDraining === true;
    if (wasSeen && !isDraining) {
      screen.complain(`gantry: somebody resumed ${host} meanwhile.\n`);
      break;
    }
    wasSeen = isDraining;
    ({ running } = await fleet.request(host, 'host.drain', {}, signal));
    if (running !== before && !screen.isJson) printLines(screen, [runningText(running)]);
  }
  if (screen.isJson) printJson(screen, { schema: 1, status: 'success', host, is_draining: true, running });
}

export async function resumeHost(host: string, session: Session): Promise<void> {
  const { screen, signal } = session;
  const fleet = await session.hosts();
  const { isDraining, running } = await fleet.request(host, 'host.resume', {}, signal);
  if (screen.isJson) printJson(screen, { schema: 1, status: 'success', host, is_draining: isDraining, running });
  else printLines(screen, [`${host} takes part again.`]);
}

function runningText(running: number): string {
  if (running === 0) return 'Nothing runs there any more.';
  return running === 1 ? 'One job is still running.' : `${running} jobs are still running.`;
}

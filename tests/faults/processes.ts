import { isAlive } from '../helpers/fleet.ts';

/** None of them lives. Zombies do not count: they hold nothing but their number. */
export async function allGone(pids: readonly number[]): Promise<boolean> {
  return (await Promise.all(pids.map(isAlive))).every((alive) => !alive);
}

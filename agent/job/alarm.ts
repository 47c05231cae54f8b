import { Deadline } from '../../shared/abort.ts';

/** Calls back once, after `ms`. Setting it again replaces the earlier call; once cleared it never calls. */
export class Alarm implements Disposable {
  #deadline: Deadline | undefined;

  set(ms: number, ring: () => void): void {
    this.clear();
    const deadline = new Deadline({ ms });
    this.#deadline = deadline;
    deadline.signal.addEventListener('abort', () => this.#deadline === deadline && ring(), { once: true });
  }

  clear(): void {
    this.#deadline?.[Symbol.dispose]();
    this.#deadline = undefined;
  }

  [Symbol.dispose](): void {
    this.clear();
  }
}

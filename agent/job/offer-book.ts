import type { OfferedWork } from '../../shared/host-snapshot.ts';
import type { ModelId } from '../../shared/job.ts';
import type { OfferLine } from '../../shared/protocol.ts';

/** One line of a session's present offer, with what became of it since it was sent. */
export type OpenLine = {
  readonly lineId: string;
  readonly sessionId: string;
  readonly tokenId: string;
  readonly bridgeId: string;
  readonly offer: OfferLine;
  /** Jobs left after what was granted since the line was sent. */
  left: number;
  /** Since when it waits: first offered, or last granted. */
  sinceMs: number;
  isDeclined: boolean;
};

type OfferingSession = { sessionId: string; tokenId: string; bridgeId: string };

/** What all sessions offer now. A session's offer is always replaced whole. */
export class OfferBook {
  readonly #lines = new Map<string, OpenLine>();

  lines(): OpenLine[] {
    return [...this.#lines.values()];
  }

  replace({ sessionId, tokenId, bridgeId }: OfferingSession, offers: readonly OfferLine[], nowMs: number): void {
    const before = new Map(this.#lines);
    this.remove(sessionId);
    for (const [index, offer] of offers.entries()) {
      const isTwin = offers.slice(0, index).some((each) => each.model === offer.model && each.class === offer.class);
      const lineId = `${sessionId} ${offer.class} ${offer.model}${isTwin ? ` ${index}` : ''}`;
      const sinceMs = before.get(lineId)?.sinceMs ?? nowMs;
      const from = { sessionId, tokenId, bridgeId };
      this.#lines.set(lineId, { lineId, ...from, offer, left: offer.count, sinceMs, isDeclined: false });
    }
  }

  remove(sessionId: string): void {
    for (const line of this.lines()) if (line.sessionId === sessionId) this.#lines.delete(line.lineId);
  }

  granted(lineId: string, nowMs: number): void {
    this.#change(lineId, (line) => ({ ...line, left: line.left - 1, sinceMs: nowMs }));
  }

  /** Not granted again before it is sent again. */
  declined(lineId: string): void {
    this.#change(lineId, (line) => ({ ...line, isDeclined: true }));
  }

  /** Nobody took the grant: the job still waits. */
  expired(lineId: string): void {
    this.#change(lineId, (line) => ({ ...line, left: line.left + 1 }));
  }

  /** Largest size of each line for this model, in megapixels. */
  sizes(model: ModelId): number[] {
    return this.lines().flatMap(({ offer, left }) => (offer.model === model && left > 0 ? [offer.maxMegapixels] : []));
  }

  /** Counts only, over all sessions. */
  counts(): OfferedWork[] {
    const sums = new Map<string, OfferedWork & { sessions: number }>();
    for (const { offer, left } of this.lines()) {
      if (left <= 0) continue;
      const key = `${offer.class} ${offer.model}`;
      const sum = sums.get(key) ?? { model: offer.model, class: offer.class, count: 0, workMs: 0, sessions: 0 };
      sums.set(key, {
        ...sum,
        count: sum.count + left,
        workMs: sum.workMs + (offer.workMs * left) / offer.count,
        sessions: sum.sessions + 1,
      });
    }
    return [...sums.values()];
  }

  #change(lineId: string, change: (line: OpenLine) => OpenLine): void {
    const line = this.#lines.get(lineId);
    if (line !== undefined) this.#lines.set(lineId, change(line));
  }
}

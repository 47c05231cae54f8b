import { performance } from 'node:perf_hooks';
import type { ChoiceView, LineView } from './choice.ts';
import type { LoadWishes } from './load-wishes.ts';
import type { OfferBook } from './offer-book.ts';
import type { Servers } from './servers.ts';
import type { Session } from './session.ts';
import type { SlotBoard } from './slot-board.ts';

type Sources = {
  board: SlotBoard;
  offers: OfferBook;
  wishes: LoadWishes;
  residency: Servers;
  /** Those that may have grants now. */
  sessions: readonly Session[];
  /** Why nobody may. */
  refusal: string | undefined;
};

/** Slots, lines and VRAM of this moment, as the choice wants them. Also tells the board what is offered work. */
export function choiceView(sources: Sources): Omit<ChoiceView, 'leadMs' | 'turnMs'> {
  const { board, wishes, refusal: reason } = sources;
  const nowMs = performance.now();
  const lines = [...offeredLines(sources, nowMs), ...wishes.lines(nowMs)];
  board.offered = new Set(lines.filter((line) => !line.isDeclined && line.count > 0).map((line) => line.model));
  const slots = board.slotIds().map((slotId) => board.view(slotId, { reason, isLeaving: wishes.isLeaving(slotId) }));
  return { nowMs, slots, lines, vram: board.vram };
}

function offeredLines({ board, offers, residency, sessions }: Sources, nowMs: number): LineView[] {
  const open = new Set(sessions.map((each) => each.sessionId));
  return offers
    .lines()
    .filter((line) => open.has(line.sessionId))
    .map(({ lineId, sessionId, tokenId, bridgeId, offer, left, sinceMs, isDeclined }) => ({
      lineId,
      sessionId,
      tokenId,
      bridgeId,
      model: offer.model,
      class: offer.class,
      rank: offer.rank ?? 0,
      count: left,
      workMs: (offer.workMs * Math.max(0, left)) / offer.count,
      inFlight: offer.inFlight,
      waitingMs: nowMs - sinceMs,
      isDeclined,
      wants: board.slotIds(offer.model).map((id) => residency.wantFor(id, { megapixels: offer.maxMegapixels })),
    }));
}

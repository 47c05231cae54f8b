import { giveBack, GivingBack } from '../giving-back.ts';
import { MoveAnswer } from '../moves.ts';
import { defineTool, ENDS } from '../tool.ts';

export const offloadGpu = defineTool({
  name: 'offload_gpu',
  title: 'Offload a model to host RAM',
  description:
    "Move a model's weights from the GPU to host RAM, so that its VRAM is free and it comes back fast. A running image " +
    'ends first. Answers the VRAM before and after as nvidia-smi shows it, and how long batch work leaves the model away.',
  annotations: ENDS,
  input: GivingBack,
  output: MoveAnswer,
  run: (args, context) => giveBack('offload', { args, context }),
});

"""A conversation that outgrows its verbatim window, and a question about its beginning.

python examples/chat_with_memory.py

The last turns are repeated to the model word for word; older ones become a document of the store, and each question
injects what it needs of them. To keep this short the window is 160 tokens and the first turns are written down here;
for a chat of your own see `shared-context chat`.
"""

from shared_context import SharedLLMContextStore, SharedLLMModel

RECENT_TOKENS = 160
BUDGET = 256

TURNS = [
    ("user", "Good morning! My name is Maud Pettigrew and I start on Monday as a rigger."),
    ("assistant", "Good morning, Maud, and welcome. What would you like to know?"),
    ("user", "They gave me locker 417, and the code of its lock is 8264. Will I need a padlock as well?"),
    ("assistant", "No, the lock is part of the locker. Change the code if somebody else has seen it."),
    ("user", "I am allergic to shellfish. Whom should I tell?"),
    ("assistant", "Tell the canteen and the nurse. The canteen marks every dish that contains shellfish."),
    ("user", "My train gets in at twenty past five in the morning. Is that early enough for the early shift?"),
    ("assistant", "Yes. The early shift begins at 05:47, and the walk from the station takes ten minutes."),
    ("user", "What should I wear on the first day?"),
    ("assistant", "Boots with a steel cap and something warm. Gloves and a lifejacket are issued to you."),
    ("user", "Is there somewhere to leave a bicycle?"),
    ("assistant", "There is a rack behind the gatehouse. Lock it: the gulls do not steal bicycles, but people do."),
    ("user", "Do I have to bring my own tools?"),
    ("assistant", "A knife and a marlinspike are customary. Everything else is drawn from the Stores."),
    ("user", "Can my brother visit me at work?"),
    ("assistant", "Visitors are welcome on Saturdays. He signs in at the gatehouse and you meet him there."),
    ("user", "And when do I get paid?"),
    ("assistant", "On the twenty-third of the month, or on the last working day before it."),
    ("user", "Is there a choir, or something else to do in the evening?"),
    ("assistant", "There is a gig club, a brass band and a chess evening. No choir, I am afraid."),
    ("user", "I play the cornet!"),
    ("assistant", "Then the band will be glad of you. It meets on Tuesdays."),
]
QUESTIONS = ["What is the code of my lock?", "What is my name?"]

model = SharedLLMModel.from_pretrained("smollm2-135m-instruct")
store = SharedLLMContextStore(model)  # with a path the conversation is there again when the store is reopened
conversation = store.conversation("maud", recent_tokens=RECENT_TOKENS)
for role, content in TURNS:
    conversation.append(role, content)

kept, everything = conversation.recent(), conversation.messages()
print(f"{len(everything)} messages: the last {len(kept)} word for word, {len(everything) - len(kept)} compressed.")
print(f"The oldest of the last: {kept[0]['role']}: {kept[0]['content']}")

for question in QUESTIONS:
    messages = [*conversation.recent(), {"role": "user", "content": question}]
    remembered = conversation.select(question, budget=BUDGET)
    without_memory = model.generate(messages, max_new_tokens=24)
    with_memory = model.generate(messages, context=remembered, max_new_tokens=24)
    print(f"\nuser:       {question}")
    print(f"assistant:  {with_memory}")
    print(f"  from {remembered.kv_entries} KV entries of earlier turns, the best of them:")
    best = max(remembered.passages, key=lambda nodes: max(node.score for node in nodes))
    print("    " + "".join(node.text for node in best).strip().replace("\n", "\n    "))
    print(f"  without them it answers: {without_memory}")
    conversation.append("user", question)
    conversation.append("assistant", with_memory)
